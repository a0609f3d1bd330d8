-- Gives a shard back that its holder does not finish.
-- KEYS[1] job
-- ARGV    shard · the holder's token · how many shards shall wait
-- Returns shard, wake, shard, wake … of all that wait
-- Repeat  the same: the token is gone, so nothing is given twice
local job, n, ahead = KEYS[1], ARGV[1], tonumber(ARGV[3])
local shard = job .. SHARD .. n
if redis.call('HGET', shard, 'token') == ARGV[2] and redis.call('ZREM', job .. HELD, n) == 1 then
  redis.call('HDEL', shard, 'token', 'takes')
  -- It is not dead: what was counted stays, and no more is.
  local counted = string.match(redis.call('HGET', shard, 'alone') or '', '^%d+ %d+ %d+ ')
  if counted then redis.call('HSET', shard, 'alone', counted .. '-') end
  redis.call('LPUSH', job .. TODO, n)
end
return open(job, ahead)
