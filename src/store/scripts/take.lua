-- Gives a shard to a holder, and opens the next ones.
-- KEYS[1] job
-- ARGV    shard · wake of the queue job that asks · the holder's fresh token · how many shards shall wait · how far
--         apart, in ms, deaths with one line alone in hand are at least to count
-- Returns {'taken', waiting, first, lines, offset, bytes, left, done bitmap ('' for none), bad bitmap ('' for none),
--         takes since the last commit, '' or 'line deaths at' of a line that was alone in hand of holders that died}
--         {'stale', waiting}: another wake, or the shard is neither queued nor held
--         {'not now', {}}: the job is not in progress, or paused, or its deadline is over; the shard is among those
--         given back
-- Repeat  'taken' by the token, and it counts as one take, also where the deadline passes in between: whoever has the
--         shard has to stop by itself; 'not now' as long as what is said of the job there stands, else 'stale'
-- Errors  DAMAGED: the shard was never planned
local job, n, wake, token, ahead = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local shard = job .. SHARD .. n
local fields = { 'wake', 'token', 'first', 'lines', 'offset', 'bytes', 'left', 'done', 'bad', 'alone' }
local found = redis.call('HMGET', shard, unpack(fields))
if found[1] ~= wake then
  -- A wake that is yet to come is from before Redis lost its tail: opening might bring back the very one, and a repeat
  -- would be answered differently. The sweeper opens.
  local isAhead = tonumber(wake) > tonumber(found[1] or 0)
  return { 'stale', open(job, isAhead and 0 or ahead) }
end

local record = redis.call('HMGET', job, 'state', 'paused_at', 'deadline')
-- Nobody else may be there to end the job, and nothing begins past its deadline.
local isOver = found[2] ~= token and record[3] and now() >= tonumber(record[3])
if record[1] ~= 'in_progress' or record[2] or isOver then
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
local line, deaths, at, by = string.match(found[10] or '', '^(%d+) (%d+) (%d+) (%S+)$')
if found[2] ~= token then
  redis.call('HSET', shard, 'token', token)
  redis.call('HINCRBY', shard, 'takes', 1)
  -- Whoever had it alone in hand has neither committed nor given back.
  if line and by ~= '-' then
    if now() - at >= tonumber(ARGV[5]) then deaths, at = deaths + 1, now() end
    redis.call('HSET', shard, 'alone', string.format('%s %d %.0f -', line, deaths, at))
  end
end
local takes = redis.call('HGET', shard, 'takes') or 0
local crashed = line and string.format('%s %d %.0f', line, deaths, at) or ''
local left, done, bad = found[7] or found[4], found[8] or '', found[9] or ''
return { 'taken', open(job, ahead), found[3], found[4], found[5], found[6], left, done, bad, takes, crashed }
