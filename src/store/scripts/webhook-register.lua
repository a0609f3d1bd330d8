-- Registers an endpoint, while there are not too many.
-- KEYS[1] base of the webhooks' keys
-- ARGV    endpoint id · how many there may be · then field, value …
-- Returns 1 when it is registered, 0 when there are too many
-- Repeat  1, by the id
local index, id = KEYS[1] .. ENDPOINTS, ARGV[1]
if redis.call('ZSCORE', index, id) then return 1 end
if redis.call('ZCARD', index) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', index, now(), id)
redis.call('HSET', KEYS[1] .. ENDPOINT .. id, 'created_at', now(), unpack(ARGV, 3))
return 1
