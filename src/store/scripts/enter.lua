-- Puts an id into an index at the present time.
-- KEYS[1] index
-- ARGV    id · '1' to give an entry that is there the present time · how far ahead of it (ms; none unless given)
-- Returns the entry's time (ms)
-- Repeat  the same entry; anew, the time of the repeat
local at = now() + (tonumber(ARGV[3]) or 0)
if ARGV[2] == '1' then redis.call('ZADD', KEYS[1], at, ARGV[1]) else redis.call('ZADD', KEYS[1], 'NX', at, ARGV[1]) end
return redis.call('ZSCORE', KEYS[1], ARGV[1])
