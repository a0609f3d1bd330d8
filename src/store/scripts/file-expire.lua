-- Gives a file an end that has none.
-- KEYS[1] file
-- ARGV    when it ends (ms)
-- Returns 1 when it has one, now or before; 0 when the file is gone
-- Repeat  the same
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSETNX', KEYS[1], 'expires_at', ARGV[1])
return 1
