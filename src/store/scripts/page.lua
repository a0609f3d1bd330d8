-- A run of ids of an index. Place and run are read together, so ids that come or go meanwhile shift nothing.
-- KEYS[1] index
-- ARGV    id to begin behind ('' for the start) · how many at most · 'asc' or 'desc' · least and most time (ms) of an
--         entry, '-inf' and '+inf' for any
-- Returns ids by (time, id), or nil when the id to begin behind is not there
-- Repeat  writes nothing
local index, after, limit = KEYS[1], ARGV[1], tonumber(ARGV[2])
local desc, least, most = ARGV[3] == 'desc', ARGV[4], ARGV[5]
-- Ranks of the first and behind the last entry of the times, in the order that is asked for.
local newer = most == '+inf' and 0 or redis.call('ZCOUNT', index, '(' .. most, '+inf')
local older = least == '-inf' and 0 or redis.call('ZCOUNT', index, '-inf', '(' .. least)
local from = desc and newer or older
local stop = redis.call('ZCARD', index) - (desc and older or newer)
if after ~= '' then
  local rank = redis.call(desc and 'ZREVRANK' or 'ZRANK', index, after)
  if not rank then return false end
  from = math.max(from, rank + 1)
end
local last = math.min(from + limit, stop) - 1
if last < from then return {} end
return redis.call(desc and 'ZREVRANGE' or 'ZRANGE', index, from, last)
