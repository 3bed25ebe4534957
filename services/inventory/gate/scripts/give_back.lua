-- Gives units of one flash sale back.
-- KEYS: the units left, the units by customer. ARGV: how many units are on sale again, customer, units, …
for i = 2, #ARGV, 2 do
    if redis.call('HINCRBY', KEYS[2], ARGV[i], -tonumber(ARGV[i + 1])) <= 0 then
        redis.call('HDEL', KEYS[2], ARGV[i])
    end
end
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('INCRBY', KEYS[1], ARGV[1]) end
