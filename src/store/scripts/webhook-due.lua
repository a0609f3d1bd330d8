-- The delivery that is longest due at each host that has one.
-- KEYS[1] base of the webhooks' keys
-- ARGV    how many hosts at most
-- Returns host, delivery id …
-- Repeat  writes nothing
local due = {}
for _, host in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1] .. HOSTS, '-inf', now(), 'LIMIT', 0, ARGV[1])) do
  due[#due + 1] = host
  due[#due + 1] = redis.call('ZRANGE', KEYS[1] .. HOST .. host, 0, 0)[1]
end
return due
