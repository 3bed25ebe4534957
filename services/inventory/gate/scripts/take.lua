-- Takes units of one flash sale for several customers.
-- KEYS: the units left, the units by customer. ARGV: customer, units, customer, units, …
-- Returns for each pair -1 if it took its units, -2 if it passes without, otherwise the units left. Nothing is
-- returned for a sale without a counter, or with one that no rebuild has written: all holds pass.
local left = tonumber(redis.call('GET', KEYS[1]))
if not left or left < 0 or left % 1 ~= 0 then return {} end
local answers, before = {}, left
for i = 1, #ARGV, 2 do
    local units = tonumber(ARGV[i + 1])
    if left >= units then
        redis.call('HINCRBY', KEYS[2], ARGV[i], units)
        left = left - units
        answers[#answers + 1] = -1
    elseif redis.call('HEXISTS', KEYS[2], ARGV[i]) == 1 then
        answers[#answers + 1] = -2
    else
        answers[#answers + 1] = math.max(left, 0)
    end
end
if left < before then
    redis.call('SET', KEYS[1], left, 'KEEPTTL')
    redis.call('EXPIRE', KEYS[2], 10, 'NX')
end
return answers
