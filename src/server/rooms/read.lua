-- Says how a room stands, and what was said from a number on. A room that has lost what the asker has seen begins anew.
--
-- KEYS[1] meta, KEYS[2] log, KEYS[3] who is there. ARGV: the epoch and number that the asker has seen, the epoch that
-- begins if one has to (empty: none), the number from which messages are wanted (empty: the last one), how many at most (0:
-- none), how many ms the room lives on at least, 1 if it is wanted who is there.
-- Answers with the epoch, the number, how many messages, each with its number before it, and then who is there: `<node>
-- <user>`, `<connection> <sockets>`.
local seen_epoch, seen, begins = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local from, most, lives = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])

local epoch, seq = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'seq'))
seq = tonumber(seq) or 0
if begins ~= '' and (not epoch or (epoch == seen_epoch and seq < seen)) then
    redis.call('DEL', KEYS[2])
    epoch, seq = begins, 0
    redis.call('HSET', KEYS[1], 'epoch', epoch, 'seq', '0', 'bytes', '0')
end
if begins ~= '' then
    redis.call('PEXPIRE', KEYS[1], lives)
    redis.call('PEXPIRE', KEYS[3], lives)
end
if seen_epoch ~= '0' and seen_epoch ~= epoch then
    from = '1'
end
local entries = {}
if most > 0 and from ~= '' then
    entries = redis.call('XRANGE', KEYS[2], from .. '-0', '+', 'COUNT', most)
elseif most > 0 then
    entries = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
end
local answer = { epoch or '', string.format('%.0f', seq), tostring(#entries) }
for _, entry in ipairs(entries) do
    table.insert(answer, string.match(entry[1], '^%d+'))
    table.insert(answer, entry[2][2])
end
if ARGV[7] == '1' then
    for _, part in ipairs(redis.call('HGETALL', KEYS[3])) do
        table.insert(answer, part)
    end
end
return answer
