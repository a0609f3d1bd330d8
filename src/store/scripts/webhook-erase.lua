-- Forgets what was, or is to be, told of one job.
-- KEYS[1] base of the webhooks' keys
-- ARGV    the event's id · then for each target: its id · the host of the delivery, '' where there is none
-- Returns nothing
-- Repeat  the same
local base, event = KEYS[1], ARGV[1]
for i = 2, #ARGV, 2 do
  local target, host = ARGV[i], ARGV[i + 1]
  local id, list = event .. '.' .. target, base .. ATTEMPTS .. target
  redis.call('DEL', base .. DELIVERY .. id)
  if host ~= '' then
    redis.call('ZREM', base .. HOST .. host, id)
    place_host(base, host, math.min(now(), redis.call('ZSCORE', base .. HOSTS, host) or now()))
  end
  for _, line in ipairs(redis.call('LRANGE', list, 0, -1)) do
    if string.find(line, '"event":"' .. event .. '"', 1, true) then redis.call('LREM', list, 0, line) end
  end
end
