-- Accepts the answers of one segment, which storage has already. A part (one shard, one token) is accepted or refused
-- whole; bitmap, lines left, parts, counts and usage change together, so counts equal lines at every moment.
-- KEYS[1] job
-- ARGV    segment id · its bytes · its sha256 · then for each part: shard · token · mask · ok · failed · tokens in,
--         cached, out, reasoning · offset · length · crc · its engines and how much each answered, or ''
-- Returns {1 if every shard of the job is done else 0, part, part …}, where a part is
--         {'committed', lines left} | {'sealed'}: the job is finalizing or final | {'stale'}: another token holds it
--         | {'overlap', done bitmap}: a line of it is done already; tokens rule it out unless Redis lost its tail
-- Repeat  the same, by the segment and offset that the shard lists
-- Errors  MASK: a mask of another length than the shard's bitmap
local PER_PART = 13
local job, segment = KEYS[1], ARGV[1]
local sealed = SEALED[redis.call('HGET', job, 'state') or '']

-- The union of two bitmaps, or nil where they overlap. SETBIT would cost a call a line.
local function union(done, mask)
  local bytes = {}
  for i = 1, #mask do
    local old, new = string.byte(done, i), string.byte(mask, i)
    if bit.band(old, new) ~= 0 then return nil end
    bytes[i] = string.char(bit.bor(old, new))
  end
  return table.concat(bytes)
end

local function add(field, amount)
  if amount ~= '0' then redis.call('HINCRBY', job, field, amount) end
end

local function accept(at, n, shard, parts, done, left, takes)
  redis.call('HSET', job .. SEGMENTS, segment, ARGV[2] .. ' ' .. ARGV[3])
  local range = segment .. ' ' .. ARGV[at + 9] .. ' ' .. ARGV[at + 10] .. ' ' .. ARGV[at + 11]
  -- What the part counts is kept beside it: it has to be taken back should storage lose the part.
  local part = ';' .. range .. ' ' .. table.concat(ARGV, ' ', at + 3, at + 8)
  if ARGV[at + 12] ~= '' then part = part .. ' ' .. ARGV[at + 12] end
  redis.call('HSET', shard, 'done', done, 'left', left, 'parts', (parts or '') .. part)
  redis.call('HDEL', shard, 'alone')
  -- One that many processes died with is not trusted again at once: what they died of may still be to come.
  if tonumber(takes or 0) > MANY_TAKES then
    redis.call('HSET', shard, 'takes', MANY_TAKES)
  else
    redis.call('HDEL', shard, 'takes')
  end
  add('completed', ARGV[at + 3])
  add('failed', ARGV[at + 4])
  add('tokens_in', ARGV[at + 5])
  add('tokens_cached', ARGV[at + 6])
  add('tokens_out', ARGV[at + 7])
  add('tokens_reasoning', ARGV[at + 8])
  if left > 0 then return end
  redis.call('ZREM', job .. HELD, n)
  redis.call('ZREM', job .. QUEUED, n)
  redis.call('HDEL', shard, 'token', 'op')
  redis.call('HINCRBY', job, 'done_shards', 1)
end

local results = {}
for at = 4, #ARGV, PER_PART do
  local n, token, mask = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local shard = job .. SHARD .. n
  local found = redis.call('HMGET', shard, 'token', 'lines', 'left', 'done', 'parts', 'takes')
  local lines, parts = tonumber(found[2] or 0), found[5]
  local left = tonumber(found[3] or lines)
  local place = ';' .. segment .. ' ' .. ARGV[at + 9] .. ' '
  local result
  if parts and string.find(parts, place, 1, true) then -- check: repeat
    result = { 'committed', left }
  elseif sealed then -- check: sealed
    result = { 'sealed' }
  elseif found[1] ~= token then -- check: token
    result = { 'stale' }
  else
    local done = found[4] or string.rep('\0', math.ceil(lines / 8))
    if #mask ~= #done then return redis.error_reply('MASK ' .. shard .. ' has ' .. #done .. ' bytes') end
    local merged = union(done, mask)
    if merged then
      left = left - ARGV[at + 3] - ARGV[at + 4]
      accept(at, n, shard, parts, merged, left, found[6])
      result = { 'committed', left }
    else
      result = { 'overlap', done }
    end
  end
  results[#results + 1] = result
end

local progress = redis.call('HMGET', job, 'done_shards', 'shards')
return { progress[1] and progress[1] == progress[2] and 1 or 0, unpack(results) }
