-- Gives one's lease up.
-- KEYS[1] lease
-- ARGV    holder
-- Returns 1 when it was the holder's, else 0
-- Repeat  0, which nobody reads
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
