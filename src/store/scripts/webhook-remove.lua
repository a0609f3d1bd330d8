-- Forgets an endpoint and its attempts.
-- KEYS[1] base of the webhooks' keys
-- ARGV    op id · endpoint id
-- Returns 1 when there was one, else 0
-- Repeat  the same, by the op id, which outlives the record for a minute
local base, op, id = KEYS[1], ARGV[1], ARGV[2]
local record = base .. ENDPOINT .. id
if redis.call('GET', record .. REMOVED) == op then return 1 end
redis.call('ZREM', base .. ENDPOINTS, id)
redis.call('DEL', base .. ATTEMPTS .. id)
if redis.call('DEL', record) == 0 then return 0 end
redis.call('SET', record .. REMOVED, op, 'EX', 60)
return 1
