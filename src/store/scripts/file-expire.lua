-- Gives a file an end, unless it has an earlier one.
-- KEYS[1] file
-- ARGV    when it ends (ms)
-- Returns 1 when it has one, now or before; 0 when the file is gone
-- Repeat  the same
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local ends = tonumber(redis.call('HGET', KEYS[1], 'expires_at'))
if not ends or ends > tonumber(ARGV[1]) then redis.call('HSET', KEYS[1], 'expires_at', ARGV[1]) end
return 1
