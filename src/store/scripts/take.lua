-- Gives a shard to a holder, and opens the next ones.
-- KEYS[1] job
-- ARGV    shard · wake of the queue job that asks · the holder's fresh token · how many shards shall wait
-- Returns {'taken', waiting, first, lines, offset, bytes, left, done bitmap ('' for none), bad bitmap ('' for none)}
--         {'stale', waiting}: another wake, or the shard is neither queued nor held
--         {'not now', {}}: the job is not in progress, or paused; the shard is among those given back
-- Repeat  'taken' by the token, and it counts as one take; 'not now' as long as the job is not in progress or paused
-- Errors  DAMAGED: the shard was never planned
local job, n, wake, token, ahead = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local shard = job .. SHARD .. n
local found = redis.call('HMGET', shard, 'wake', 'token', 'first', 'lines', 'offset', 'bytes', 'left', 'done', 'bad')
if found[1] ~= wake then
  -- A wake that is yet to come is from before Redis lost its tail: opening might bring back the very one, and a repeat
  -- would be answered differently. The sweeper opens.
  local isAhead = tonumber(wake) > tonumber(found[1] or 0)
  return { 'stale', open(job, isAhead and 0 or ahead) }
end

local record = redis.call('HMGET', job, 'state', 'paused_at')
if record[1] ~= 'in_progress' or record[2] then
  if redis.call('ZREM', job .. QUEUED, n) + redis.call('ZREM', job .. HELD, n) > 0 then
    redis.call('HDEL', shard, 'token')
    redis.call('LPUSH', job .. TODO, n)
  end
  return { 'not now', {} }
end

if not redis.call('ZSCORE', job .. QUEUED, n) and not redis.call('ZSCORE', job .. HELD, n) then
  return { 'stale', open(job, ahead) }
end
if not found[4] then return redis.error_reply('DAMAGED ' .. shard .. ' lines') end
redis.call('ZREM', job .. QUEUED, n)
redis.call('ZADD', job .. HELD, now(), n)
if found[2] ~= token then
  redis.call('HSET', shard, 'token', token)
  redis.call('HINCRBY', shard, 'takes', 1)
end
local left, done, bad = found[7] or found[4], found[8] or '', found[9] or ''
return { 'taken', open(job, ahead), found[3], found[4], found[5], found[6], left, done, bad }
