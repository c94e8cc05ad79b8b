-- Says how a room stands, and what was said from a number on. A room that has lost what the asker has seen begins anew.
--
-- KEYS[1] meta, KEYS[2] log. ARGV: the epoch and number that the asker has seen, the epoch that begins if one has to (empty:
-- none), the number from which messages are wanted, how many at most, how many ms the room lives on at least.
-- Answers with the epoch, the number, and the messages: number, message, number, message.
local seen_epoch, seen, begins = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local from, most, lives = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])

local epoch, seq = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'seq'))
seq = tonumber(seq) or 0
if not epoch and begins == '' then
    return { '', '0' }
end
if not epoch or (epoch == seen_epoch and seq < seen) then
    redis.call('DEL', KEYS[2])
    epoch, seq = begins, 0
    redis.call('HSET', KEYS[1], 'epoch', epoch, 'seq', '0', 'bytes', '0')
end
if begins ~= '' then
    if redis.call('PTTL', KEYS[1]) < lives then
        redis.call('PEXPIRE', KEYS[1], lives)
    end
end
local answer = { epoch, string.format('%.0f', seq) }
if seen_epoch ~= '0' and seen_epoch ~= epoch then
    from = '1'
end
if most > 0 and from ~= '' then
    for _, entry in ipairs(redis.call('XRANGE', KEYS[2], from .. '-0', '+', 'COUNT', most)) do
        table.insert(answer, string.match(entry[1], '^%d+'))
        table.insert(answer, entry[2][2])
    end
end
return answer
