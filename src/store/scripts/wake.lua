-- Raises a record's wake, so that a new queue job replaces one that was lost.
-- KEYS[1] record
-- ARGV    expected wake · op id
-- Returns the new wake, or -1 when it is another one or the record is gone
-- Repeat  the same, by the op id
local found = redis.call('HMGET', KEYS[1], 'wake', 'wake_op')
if found[2] == ARGV[2] then return tonumber(found[1]) end
if found[1] ~= ARGV[1] then return -1 end
redis.call('HSET', KEYS[1], 'wake_op', ARGV[2])
return redis.call('HINCRBY', KEYS[1], 'wake', 1)
