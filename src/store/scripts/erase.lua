-- Removes a record that is final, with its history, and leaves a note of what of it is still to go. As long as the note
-- is there, no record is made under its id.
-- KEYS[1] record
-- ARGV    the note · how long it stays (s)
-- Returns 'erased' | 'running': it is not final | 'gone': there is neither a record nor a note
-- Repeat  'erased', by the note
local record = KEYS[1]
local state = redis.call('HGET', record, 'state')
if not state then return redis.call('EXISTS', record .. ERASED) == 1 and 'erased' or 'gone' end
if not FINAL[state] then return 'running' end
redis.call('SET', record .. ERASED, ARGV[1], 'EX', ARGV[2])
redis.call('UNLINK', record, record .. EVENTS, record .. PROVISIONS)
return 'erased'
