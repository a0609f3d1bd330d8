-- Takes a lease that nobody has, or renews one's own.
-- KEYS[1] lease
-- ARGV    holder · ms
-- Returns 1 when the holder has it, 0 when another has
-- Repeat  the same
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
