-- Lets a queued or held shard wait again under a new wake, because its queue job is gone. A holder that still lives
-- keeps its token, and may commit, until somebody takes the shard.
-- KEYS[1] job
-- ARGV    shard · expected wake · op id
-- Returns the new wake, or -1 when it is another one or the shard is neither queued nor held
-- Repeat  the same, by the op id
local job, n = KEYS[1], ARGV[1]
local shard = job .. SHARD .. n
local found = redis.call('HMGET', shard, 'wake', 'op')
if found[2] == ARGV[3] then return tonumber(found[1]) end
if found[1] ~= ARGV[2] then return -1 end
if redis.call('ZREM', job .. HELD, n) + redis.call('ZREM', job .. QUEUED, n) == 0 then return -1 end
redis.call('ZADD', job .. QUEUED, now(), n)
redis.call('HSET', shard, 'op', ARGV[3])
return redis.call('HINCRBY', shard, 'wake', 1)
