-- Notes that a process lives.
-- KEYS[1] nodes
-- ARGV    process id · what it is (JSON)
-- Returns the present time (ms)
-- Repeat  beats again
local time = now()
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d %s', time, ARGV[2]))
return time
