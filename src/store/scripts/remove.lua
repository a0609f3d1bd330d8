-- Removes a record, before its index entry.
-- KEYS[1] record
-- ARGV    op id
-- Returns 1 when there was one, else 0
-- Repeat  the same, by the op id, which outlives the record for a minute
local record, op = KEYS[1], ARGV[1]
if redis.call('GET', record .. REMOVED) == op then return 1 end
if redis.call('DEL', record) == 0 then return 0 end
redis.call('SET', record .. REMOVED, op, 'EX', 60)
return 1
