-- Says why nothing is sent to an endpoint any more.
-- KEYS[1] base of the webhooks' keys
-- ARGV    endpoint id · reason
-- Returns 1 when it is disabled, 0 when it is gone
-- Repeat  the same
local record = KEYS[1] .. ENDPOINT .. ARGV[1]
if redis.call('EXISTS', record) == 0 then return 0 end
redis.call('HSET', record, 'disabled', ARGV[2])
return 1
