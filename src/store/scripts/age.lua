-- How long ago an id came into an index, by the clock that stamped it.
-- KEYS[1] index
-- ARGV    id
-- Returns ms, or -1 when it is not there
-- Repeat  writes nothing
local entered = redis.call('ZSCORE', KEYS[1], ARGV[1])
return entered and now() - tonumber(entered) or -1
