-- Numbers a message of a room, keeps it and tells all instances, in one step.
--
-- KEYS[1] meta, KEYS[2] log, KEYS[3] the position that this speaker's id got (left out where the message has none).
-- ARGV: how to publish, the channel, the room, the message, the epoch and number that the asker has seen, the epoch that
-- begins if one has to, how many messages, bytes and ms are kept, how many ms ids are known.
-- Answers with the epoch and the number.
local how, channel, room, message = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local seen_epoch, seen, begins = ARGV[5], tonumber(ARGV[6]), ARGV[7]
local most, bytes_most, age, ids_age = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])

if KEYS[3] then
    local known = redis.call('GET', KEYS[3])
    if known then
        local epoch, seq = string.match(known, '^(%S+) (%d+)$')
        if epoch then
            return { epoch, seq }
        end
    end
end

local epoch, seq, bytes = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'bytes'))
seq, bytes = tonumber(seq) or 0, tonumber(bytes) or 0
if not epoch or (epoch == seen_epoch and seq < seen) then
    -- There is no room, or it has lost what somebody has seen.
    redis.call('DEL', KEYS[2])
    epoch, seq, bytes = begins, 0, 0
end
seq = seq + 1
local number = string.format('%.0f', seq)

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local length = 0
if most > 0 and age > 0 then
    redis.call('XADD', KEYS[2], number .. '-0', 'm', message, 't', string.format('%.0f', now))
    bytes = bytes + #message
    length = redis.call('XLEN', KEYS[2])
end
-- For each message that comes some may go: more than one only where bytes or age say so.
for _ = 1, 16 do
    local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
    if not oldest then
        break
    end
    local kept, at = oldest[2][2], tonumber(oldest[2][4]) or 0
    if length <= most and bytes <= bytes_most and at + age > now then
        break
    end
    redis.call('XDEL', KEYS[2], oldest[1])
    bytes, length = math.max(0, bytes - #kept), length - 1
end
local lives = math.max(age, ids_age)
redis.call('HSET', KEYS[1], 'epoch', epoch, 'seq', number, 'bytes', string.format('%.0f', bytes))
redis.call('PEXPIRE', KEYS[1], lives)
redis.call('PEXPIRE', KEYS[2], lives)
if KEYS[3] then
    redis.call('SET', KEYS[3], epoch .. ' ' .. number, 'PX', ids_age)
end
redis.call(how, channel, table.concat({ room, epoch, number, message }, ' '))
return { epoch, number }
