-- Notes what became of an attempt, and when the next one is due. The host goes behind all others that wait.
-- KEYS[1] base of the webhooks' keys
-- ARGV    op id · delivery id · host · target · the attempt as JSON ('' where none was made) · ms until the next one
--         ('' when there is none) · attempts to keep · how long to keep what is over (s)
-- Returns id of the host's next delivery that is due; '' when none is
-- Repeat  the same, by the op id, unless more came for the host meanwhile
local base, op, id, host, again = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[6]
local record, queue = base .. DELIVERY .. id, base .. HOST .. host
local function next_due()
  return redis.call('ZRANGEBYSCORE', queue, '-inf', now(), 'LIMIT', 0, 1)[1] or ''
end
local found = redis.call('HMGET', record, 'op', 'body')
if found[1] == op then return next_due() end
-- Without a body it is over: a note that comes late, from a process that lost its lease meanwhile, must not revive it.
if not found[2] then
  redis.call('ZREM', queue, id)
  place_host(base, host, now())
  return next_due()
end

local next_at = again == '' and 0 or now() + again
if again == '' then redis.call('ZREM', queue, id) else redis.call('ZADD', queue, next_at, id) end
redis.call('HSET', record, 'op', op)
if ARGV[5] ~= '' then
  local attempts = redis.call('HINCRBY', record, 'attempts', 1)
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
place_host(base, host, now())
return next_due()
