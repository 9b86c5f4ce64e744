"""The everyday world of the embedded default: 96 things by hand, four attributes each.

A line is `name | colour | place | act` under its kind; `~`: mass noun. The world is small and its
values are few (12 kinds, 8 colours, 16 places, 26 acts) because a base of a million parameters
must meet each of them thousands of times before it can look one up in a list.
"""

KINDS = {
    'fruit': """
apple | red | garden | eat
pear | green | valley | eat
cherry | red | valley | bake
lemon | yellow | market | clean
banana | yellow | forest | eat
plum | blue | garden | bake
olive | black | market | cook
coconut | brown | harbour | drink
""",
    'drink': """
milk~ | white | farm | bake
tea~ | green | kitchen | rest
coffee~ | black | office | wake
juice~ | yellow | market | drink
wine~ | red | cellar | cook
beer~ | yellow | cellar | rest
cider~ | brown | farm | drink
water~ | blue | river | clean
""",
    'bird': """
robin | red | garden | sing
crow | black | field | steal
swan | white | river | swim
eagle | brown | valley | hunt
owl | brown | forest | hunt
parrot | green | forest | sing
duck | yellow | river | swim
gull | white | harbour | steal
""",
    'fish': """
salmon | red | river | jump
shark | grey | sea | hunt
goldfish | yellow | school | swim
tuna | blue | sea | swim
eel | black | river | hide
trout | brown | river | jump
herring | grey | sea | hide
ray | blue | harbour | hide
""",
    'insect': """
ant | black | forest | dig
bee | yellow | garden | sing
wasp | yellow | kitchen | hunt
fly | black | kitchen | steal
moth | grey | cellar | hide
butterfly | blue | field | jump
beetle | green | forest | dig
cricket | brown | field | sing
""",
    'mammal': """
dog | brown | street | run
cat | black | kitchen | hunt
cow | white | farm | run
horse | brown | field | run
pig | grey | farm | dig
mouse | grey | cellar | steal
rabbit | white | garden | jump
goat | black | valley | jump
""",
    'tool': """
hammer | grey | workshop | build
saw | grey | workshop | build
shovel | brown | garden | dig
rake | green | garden | clean
broom | brown | hall | clean
needle | white | office | dress
knife | black | kitchen | cook
pencil | yellow | school | write
""",
    'vehicle': """
car | red | street | travel
bus | yellow | school | travel
truck | green | street | carry
bicycle | blue | valley | race
boat | white | sea | travel
canoe | brown | river | race
tractor | green | farm | dig
ferry | white | sea | carry
""",
    'garment': """
shirt | white | office | dress
coat | black | hall | warm
hat | black | street | dress
glove | grey | workshop | warm
sock | blue | school | warm
skirt | red | hall | dance
helmet | yellow | workshop | race
boot | brown | farm | dig
""",
    'instrument': """
piano | black | hall | play
violin | brown | hall | play
guitar | red | harbour | dance
drum | blue | street | dance
flute | grey | school | play
trumpet | yellow | valley | wake
bell | green | school | wake
whistle | white | field | play
""",
    'furniture': """
chair | brown | school | read
table | brown | kitchen | write
bed | white | cellar | rest
sofa | green | hall | rest
desk | black | office | write
bench | blue | garden | read
lamp | yellow | office | read
mirror | grey | hall | dress
""",
    'toy': """
doll | yellow | school | play
kite | blue | field | race
ball | red | harbour | play
puzzle | green | cellar | build
marble | white | street | rest
balloon | red | market | carry
puppet | brown | hall | dance
sled | black | valley | race
""",
}
