-- The processes that live; those whose last beat is too old are swept.
-- KEYS[1] nodes
-- ARGV    how old a beat may be (ms)
-- Returns process id, 'time (ms) JSON' …
-- Repeat  the same
local oldest, live = now() - tonumber(ARGV[1]), {}
local entries = redis.call('HGETALL', KEYS[1])
for i = 1, #entries, 2 do
  local beaten = tonumber(string.match(entries[i + 1], '^%d+') or 0)
  if beaten < oldest then
    redis.call('HDEL', KEYS[1], entries[i])
  else
    live[#live + 1] = entries[i]
    live[#live + 1] = entries[i + 1]
  end
end
return live
