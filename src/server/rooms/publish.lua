-- Numbers a message of a room, keeps it and tells all instances, in one step.
--
-- After what `stands.lua` takes: KEYS[3] the position that this speaker's id got (left out where the message has none);
-- ARGV[5] how to publish, the channel, the room, the message, its salt, how many messages, bytes and ms are kept, how many ms
-- ids are known, how many ms the room lives on. Answers with the epoch and the number.
local how, channel, room, message, salt = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local most, bytes_most, age, ids_age = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local lives = tonumber(ARGV[14])

if KEYS[3] then
    local known = redis.call('GET', KEYS[3])
    if known then
        local of_epoch, number = string.match(known, '^(%S+) (%d+)$')
        if of_epoch then
            return { of_epoch, number }
        end
    end
end

if not epoch or has_lost() or is_another() then
    begin()
end
local before = digest
digest = digest_of(before, salt)
seq = seq + 1
local number = string.format('%.0f', seq)

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local length = 0
if most > 0 and age > 0 then
    redis.call('XADD', KEYS[2], number .. '-0', 'm', message, 't', string.format('%.0f', now), 'b', before, 'd', digest)
    bytes = bytes + #message
    length = redis.call('XLEN', KEYS[2])
    if length == 1 then
        -- The log may have ended before the room did.
        bytes = #message
    end
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
redis.call('HSET', KEYS[1], 'epoch', epoch, 'seq', number, 'bytes', string.format('%.0f', bytes), 'digest', digest)
redis.call('PEXPIRE', KEYS[1], lives)
redis.call('PEXPIRE', KEYS[2], lives)
if KEYS[3] then
    redis.call('SET', KEYS[3], epoch .. ' ' .. number, 'PX', ids_age)
end
redis.call(how, channel, table.concat({ room, epoch, number, before, digest, message }, ' '))
return { epoch, number }
