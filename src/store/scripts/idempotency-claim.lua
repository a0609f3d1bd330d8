-- Takes an idempotency key for the request that begins under it, unless another has it.
-- KEYS[1] record of the key
-- ARGV    holder · print of the request · how long it is held without a renewal (ms)
-- Returns nothing when the holder has it; else print, status ('' while the first still runs) and answer of the first
-- Repeat  nothing, by the holder
local found = redis.call('HMGET', KEYS[1], 'holder', 'print', 'status', 'answer')
if found[1] and found[1] ~= ARGV[1] then
  return { found[2], found[3] or '', found[4] or '' }
end
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'print', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {}
