-- Records an event for one target, to be sent at once; one that is there already stays as it is.
-- KEYS[1] base of the webhooks' keys
-- ARGV    delivery id · host · then field, value …
-- Returns 1 when it is new, 0 when it was there
-- Repeat  0, which nobody reads
local base, id, host = KEYS[1], ARGV[1], ARGV[2]
local record = base .. DELIVERY .. id
if redis.call('EXISTS', record) == 1 then return 0 end
redis.call('HSET', record, 'created_at', now(), unpack(ARGV, 3))
redis.call('ZADD', base .. HOST .. host, now(), id)
-- A host that waits for its turn already neither loses nor wins by what comes on top.
place_host(base, host, math.min(now(), redis.call('ZSCORE', base .. HOSTS, host) or now()))
return 1
