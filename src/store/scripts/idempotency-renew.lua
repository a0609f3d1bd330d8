-- Holds a key on while its request runs, or gives it back.
-- KEYS[1] record of the key
-- ARGV    holder · ms, 0 to give it back
-- Returns nothing
-- Repeat  the same
local found = redis.call('HMGET', KEYS[1], 'holder', 'status')
if found[1] == ARGV[1] and not found[2] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
