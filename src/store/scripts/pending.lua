-- The shards that are queued or held, read at one moment: read one by one, a shard that moves meanwhile could be
-- missed or seen with a wake that is not the one of its time.
-- KEYS[1] job
-- ARGV    none
-- Returns shard, wake, time (ms), '1' if held else '0' … oldest first within each of the two
-- Repeat  the same: writes nothing
local job, pending = KEYS[1], {}
for held, suffix in ipairs({ QUEUED, HELD }) do
  local entries = redis.call('ZRANGE', job .. suffix, 0, -1, 'WITHSCORES')
  for i = 1, #entries, 2 do
    pending[#pending + 1] = entries[i]
    pending[#pending + 1] = redis.call('HGET', job .. SHARD .. entries[i], 'wake') or '0'
    pending[#pending + 1] = entries[i + 1]
    pending[#pending + 1] = tostring(held - 1)
  end
end
return pending
