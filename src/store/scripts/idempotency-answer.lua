-- Keeps the answer of a request, to be given again to each repeat of it.
-- KEYS[1] record of the key
-- ARGV    holder · print of the request · status · answer · how long it is kept (ms)
-- Returns 1, or 0 when the holder has lost the key
-- Repeat  writes the same again
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'print', ARGV[2], 'status', ARGV[3], 'answer', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 1
