-- Removes a record that is final, with its history, and leaves a note of what of it is still to go. As long as the note
-- is there, no record is made under its id. A wish for its files, too, begins a note anew that has none.
-- KEYS[1] record
-- ARGV    the note · how long it stays (s)
-- Returns 'erased' | 'running': it is not final | 'gone': there is neither a record nor a note
-- Repeat  'erased', by the note
local record, note = KEYS[1], ARGV[1]
local KEEPS, TAKES = '"withFiles":false', '"withFiles":true'
local state = redis.call('HGET', record, 'state')
if not state then
  local found = redis.call('GET', record .. ERASED)
  if not found then return 'gone' end
  if string.find(note, TAKES, 1, true) and string.find(found, KEEPS, 1, true) then
    -- As text: a list that is empty would come back as an object.
    found = string.gsub(found, KEEPS, TAKES, 1)
    found = string.gsub(found, '"at":%d+', string.match(note, '"at":%d+'), 1)
    redis.call('SET', record .. ERASED, found, 'KEEPTTL')
  end
  return 'erased'
end
if not FINAL[state] then return 'running' end
redis.call('SET', record .. ERASED, note, 'EX', ARGV[2])
redis.call('UNLINK', record, record .. EVENTS, record .. PROVISIONS)
return 'erased'
