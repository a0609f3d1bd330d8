-- The delivery that is longest due at each host that has one: of all hosts, then of those whose next was not tried yet.
-- KEYS[1] base of the webhooks' keys
-- ARGV    how many hosts of either kind at most
-- Returns host, delivery id, '1' when it was not tried yet …; some hosts twice
-- Repeat  writes nothing
local base, due = KEYS[1], {}
for _, index in ipairs({ base .. HOSTS, base .. FRESH }) do
  for _, host in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', now(), 'LIMIT', 0, ARGV[1])) do
    due[#due + 1] = host
    due[#due + 1] = redis.call('ZRANGE', base .. HOST .. host, 0, 0)[1]
    due[#due + 1] = redis.call('ZSCORE', base .. FRESH, host) and '1' or ''
  end
end
return due
