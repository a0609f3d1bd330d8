-- Lets a provision lease a machine, as long as not too many do.
-- KEYS[1] sorted set: provision → since when
-- ARGV    provision · the most that there may be · the provision whose seat it takes over, or ''
-- Returns 1 when it has a seat, 0 when all are taken
-- Repeat  the same
local seats, id, most, from = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
if from ~= '' and redis.call('ZREM', seats, from) == 1 then most = math.max(most, redis.call('ZCARD', seats) + 1) end
if redis.call('ZSCORE', seats, id) then return 1 end
if redis.call('ZCARD', seats) >= most then return 0 end
redis.call('ZADD', seats, now(), id)
return 1
