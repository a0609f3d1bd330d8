-- Notes what became of an attempt, and when the next one is due.
-- KEYS[1] base of the webhooks' keys
-- ARGV    op id · delivery id · host · target · the attempt as JSON ('' where none was made) · ms until the next one
--         ('' when there is none) · attempts to keep · how long to keep what is over (s)
-- Returns attempts so far; 0 when the delivery is gone
-- Repeat  the same, by the op id
local base, op, id, host, again = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[6]
local record, queue = base .. DELIVERY .. id, base .. HOST .. host
local found = redis.call('HMGET', record, 'op', 'attempts', 'created_at')
if found[1] == op then return tonumber(found[2] or 0) end
local attempts, next_at = tonumber(found[2] or 0), 0
if again == '' or not found[3] then
  redis.call('ZREM', queue, id)
else
  next_at = now() + again
  redis.call('ZADD', queue, next_at, id)
end
place_host(base, host)
if not found[3] then return 0 end

redis.call('HSET', record, 'op', op)
if ARGV[5] ~= '' then
  attempts = redis.call('HINCRBY', record, 'attempts', 1)
  local list = base .. ATTEMPTS .. ARGV[4]
  redis.call('LPUSH', list, string.format('%.0f %d %.0f %s', now(), attempts, next_at, ARGV[5]))
  redis.call('LTRIM', list, 0, ARGV[7] - 1)
  redis.call('EXPIRE', list, ARGV[8])
end
if again == '' then
  -- What stays of it for a while keeps the same event from being recorded twice.
  redis.call('HDEL', record, 'body')
  redis.call('EXPIRE', record, ARGV[8])
end
return attempts
