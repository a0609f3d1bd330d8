-- Takes what units a token bucket has of those that are wanted, after others were given back; the arithmetic is that
-- of `draw` in the domain. A bucket that is not touched vanishes when it is as full as a fresh one.
-- KEYS[1] bucket
-- ARGV    op · units that flow in per second · units that are wanted · units that come back, below 0: more was used
--         than drawn · awaited, ahead or none · most units at once · ms that units are
--         kept for whoever waits · ms that a reply is kept
-- Returns {units, ms until it is worth coming again, then what it left: level, time, hungry since when (ms)}
-- Repeat  the same, by the op
local key, op = KEYS[1], ARGV[1]
local rate, want, back, need = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local block, catch_up = tonumber(ARGV[6]), tonumber(ARGV[7])
local earlier = redis.call('GET', key .. LIMIT_REPLY .. op)
if earlier then return cjson.decode(earlier) end

local time = now()
local found = redis.call('HMGET', key, 'level', 'at', 'hungry')
local before = tonumber(found[1] or block)
local at = tonumber(found[2] or time)
local hungry = tonumber(found[3] or 0)

local kept = block
if hungry > 0 and time - hungry <= catch_up then kept = math.max(before, block + rate * catch_up / 1000) end
local level = math.min(before + math.max(0, time - at) * rate / 1000, kept) + back
at = math.max(at, time)
local granted = math.max(0, math.min(want, block, math.floor(level)))
level = level - granted
local missing = want - granted
local wait = 0
if missing > 0 then
  if need == 'awaited' then hungry = at end
  local worth = math.min(missing, math.max(1, math.floor(block / 2)))
  wait = math.max(0, math.ceil((worth - level) * 1000 / rate))
end

if need == 'none' then hungry = 0 end

local function exact(number)
  return string.format('%.17g', number)
end
local life = math.ceil(math.max(0, (block - level) * 1000 / rate)) + 10000
redis.call('HSET', key, 'level', exact(level), 'at', exact(at), 'hungry', exact(hungry))
redis.call('PEXPIRE', key, exact(life))
local reply = { granted, wait, exact(level), exact(at), exact(hungry) }
redis.call('SET', key .. LIMIT_REPLY .. op, cjson.encode(reply), 'PX', ARGV[8])
return reply
