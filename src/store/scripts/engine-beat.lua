-- Notes what a process saw at an engine, and tells how it stands among those that send there. The first to come leads.
-- KEYS[1] engine
-- ARGV    process id · count of its beats · what it saw (JSON) · the window that it decided as who leads ('' for none)
--         · how old a beat may be (ms)
-- Returns {how many came before this one (0: it leads), window ('' for none), process id, 'count JSON', …}
-- Repeat  the same, later
local KEEP_MS = 60000
local key, id, time, others = KEYS[1], ARGV[1], now(), {}
local known = redis.call('HGET', key, 'p:' .. id)
local since = known and string.match(known, '^(%d+) ') or string.format('%d', time)
redis.call('HSET', key, 'p:' .. id, string.format('%s %d %s %s', since, time, ARGV[2], ARGV[3]))
local rank, mine = 0, tonumber(since)
local entries = redis.call('HGETALL', key)
for i = 1, #entries, 2 do
  local name = string.match(entries[i], '^p:(.*)$')
  if name then
    local came, beaten, rest = string.match(entries[i + 1], '^(%d+) (%d+) (.*)$')
    came = tonumber(came)
    if tonumber(beaten) < time - tonumber(ARGV[5]) then
      redis.call('HDEL', key, entries[i])
    else
      if came < mine or (came == mine and name < id) then rank = rank + 1 end
      others[#others + 1] = name
      others[#others + 1] = rest
    end
  end
end
if ARGV[4] ~= '' and rank == 0 then redis.call('HSET', key, 'limit', ARGV[4]) end
redis.call('PEXPIRE', key, KEEP_MS)
return { string.format('%d', rank), redis.call('HGET', key, 'limit') or '', unpack(others) }
