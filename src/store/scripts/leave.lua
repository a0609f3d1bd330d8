-- Takes an id out of an index, unless its time was put off meanwhile.
-- KEYS[1] index
-- ARGV    id · the latest time of an entry that goes (ms); '' for the present
-- Returns 1 when it went, else 0
-- Repeat  0: it has gone
local at = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not at or tonumber(at) > (tonumber(ARGV[2]) or now()) then return 0 end
return redis.call('ZREM', KEYS[1], ARGV[1])
