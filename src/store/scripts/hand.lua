-- Decides once what becomes of the machine of a provision that is being released: it goes over to another provision, or
-- it is given back. `handed_to` names the other one, after a '!' while it is found out whether it took the machine.
-- KEYS[1] provision
-- ARGV    'to' (nobody or it → it), 'undo' (it → '!' it), 'redo' ('!' it → it) or 'back' ('!' it → nobody), and the other
--         provision; or 'destroy'
-- Returns 1 when it is so, also if it was before; 0 when it was decided otherwise
-- Repeat  the same
local record, word, other = KEYS[1], ARGV[1], ARGV[2] or ''
local found = redis.call('HMGET', record, 'state', 'handed_to', 'destroying')
local handed, destroying = found[2] or '', found[3] == '1'
if word == 'destroy' then
  if handed ~= '' or (found[1] ~= 'releasing' and not destroying) then return 0 end
  redis.call('HSET', record, 'destroying', '1')
  return 1
end
local doubted = '!' .. other
local steps = { to = { '', other }, undo = { other, doubted }, redo = { doubted, other }, back = { doubted, '' } }
local from, to = steps[word][1], steps[word][2]
if handed == to then return 1 end
if destroying or handed ~= from or found[1] ~= 'releasing' then return 0 end
redis.call('HSET', record, 'handed_to', to)
return 1
