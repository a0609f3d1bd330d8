-- A run of ids of an index. Place and run are read together, so ids that come or go meanwhile shift nothing.
-- KEYS[1] index
-- ARGV    id to begin behind ('' for the start) · how many at most · 'asc' or 'desc'
-- Returns ids by (time, id), or nil when the id to begin behind is not there
-- Repeat  writes nothing
local index, after, limit = KEYS[1], ARGV[1], tonumber(ARGV[2])
local desc = ARGV[3] == 'desc'
local from = 0
if after ~= '' then
  local rank = redis.call(desc and 'ZREVRANK' or 'ZRANK', index, after)
  if not rank then return false end
  from = rank + 1
end
return redis.call(desc and 'ZREVRANGE' or 'ZRANGE', index, from, from + limit - 1)
