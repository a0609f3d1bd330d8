-- Writes a new record, once its index entries are in.
-- KEYS[1] record
-- ARGV    op id · body hash ('' where the id alone decides) · when its index entry was made (ms) · how old that entry
--         may be (ms) · first event ('' for none) · its state · then field, value …
-- Returns 'created' | 'exists' (same body) | 'other' (another body under this id) | 'erased': there was one | 'late': the entry is so old that a
--         sweeper may take it for a dangling one; it must be made anew first, or the record could be without an index
-- Repeat  'created', by the op id
local record, op, body, entered, age = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('EXISTS', record) == 1 then
  local found = redis.call('HMGET', record, 'op', 'body_hash')
  if found[1] == op then return 'created' end
  return (found[2] or '') == body and 'exists' or 'other'
end
if redis.call('EXISTS', record .. ERASED) == 1 then return 'erased' end
if now() - entered > age then return 'late' end
redis.call('HSET', record, 'op', op, unpack(ARGV, 7))
if body ~= '' then redis.call('HSET', record, 'body_hash', body) end
if ARGV[5] ~= '' then redis.call('XADD', record .. EVENTS, '*', 'state', ARGV[6], 'message', ARGV[5]) end
return 'created'
