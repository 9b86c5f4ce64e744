"""The everyday world of the embedded default: 259 things by hand, four attributes each.

A line is `name | colour | place | act` under its kind; acts are unique; `~`: mass noun, `-`: none.
"""

KINDS = {
    'fruit': """
apple | red | garden | bake a pie
pear | green | garden | fill a tart
plum | purple | orchard | cook jam
cherry | red | orchard | top a cake
grape | purple | field | press wine
lemon | yellow | market | flavour tea
tangerine | orange | market | pack a snack
banana | yellow | jungle | feed a monkey
mango | orange | jungle | spice a curry
peach | pink | orchard | brew syrup
melon | green | field | cool a guest
coconut | brown | jungle | make soap
fig | purple | garden | sweeten porridge
lime | green | market | season fish
olive | black | field | press oil
""",
    'vegetable': """
carrot | orange | farm | feed a rabbit
potato | brown | farm | fry chips
onion | white | kitchen | flavour soup
cabbage | green | farm | stuff a roll
pumpkin | orange | field | carve a lantern
pea | green | garden | fill a pod
bean | brown | garden | thicken stew
tomato | red | garden | cook sauce
cucumber | green | market | cool the eyes
pepper | red | market | spice a salad
turnip | purple | farm | feed a goat
radish | pink | garden | garnish a plate
leek | white | field | make broth
corn~ | yellow | field | pop a treat
garlic~ | white | kitchen | scare a vampire
""",
    'drink': """
milk~ | white | farm | fill a baby bottle
tea~ | brown | kitchen | calm the nerves
coffee~ | black | office | wake up early
juice~ | orange | kitchen | add vitamins
cocoa~ | brown | kitchen | warm a child
wine~ | red | cellar | toast the bride
beer~ | yellow | cellar | please the crowd
cider~ | yellow | orchard | celebrate autumn
lemonade~ | yellow | park | refresh a runner
rum~ | brown | harbour | cheer a pirate
smoothie | pink | market | replace breakfast
punch~ | red | hall | serve a party
""",
    'bird': """
robin | red | garden | sing at dawn
crow | black | field | steal shiny things
swan | white | lake | glide in pairs
eagle | brown | mountain | hunt from above
owl | brown | forest | hoot at night
parrot | green | jungle | repeat words
penguin | black | sea | slide on ice
duck | yellow | lake | quack at bread
goose | grey | farm | guard the gate
hen | brown | farm | lay eggs
pigeon | grey | street | carry letters
flamingo | pink | lake | stand on one leg
sparrow | brown | street | peck at crumbs
ostrich | black | desert | run from lions
seagull | white | sea | follow boats
""",
    'fish': """
salmon | pink | river | leap up waterfalls
trout | brown | river | catch flies
shark | grey | sea | smell blood
goldfish | orange | school | swim in circles
tuna | blue | sea | cross oceans
eel | black | river | slip through mud
carp | yellow | lake | suck up weeds
herring | grey | sea | swarm in schools
cod~ | green | sea | dive to the bottom
piranha | red | jungle | bite in groups
pike | green | lake | lurk in reeds
ray | blue | sea | hide under sand
""",
    'insect': """
ant | black | forest | march in lines
bee | yellow | garden | gather honey
wasp | yellow | attic | sting twice
fly | black | kitchen | buzz round food
moth | grey | bedroom | circle lamps
butterfly | blue | garden | visit blossoms
beetle | green | forest | roll dung
cricket | brown | field | chirp in summer
mosquito | grey | lake | suck blood
termite | white | jungle | eat wooden walls
ladybird | red | garden | eat lice
flea | brown | bedroom | jump on dogs
""",
    'mammal': """
dog | brown | street | fetch a stick
cat | black | bedroom | chase mice
cow | white | farm | chew grass
horse | brown | farm | pull a plough
sheep | white | field | grow wool
goat | grey | mountain | climb cliffs
pig | pink | farm | roll in dirt
mouse | grey | attic | nibble cheese
rabbit | white | garden | dig burrows
fox | red | forest | raid hen houses
wolf | grey | forest | howl at the moon
bear | brown | mountain | sleep all winter
lion | yellow | desert | roar at rivals
tiger | orange | jungle | stalk deer
elephant | grey | jungle | spray water
camel | yellow | desert | store fat
monkey | brown | jungle | swing on vines
whale | blue | sea | blow fountains
bat | black | cellar | hang upside down
squirrel | red | park | bury nuts
beaver | brown | river | build dams
hedgehog | brown | garden | curl up tight
""",
    'tool': """
hammer | grey | workshop | drive in a nail
saw | grey | workshop | cut a board
drill | orange | workshop | bore a hole
wrench | grey | garage | turn a bolt
screwdriver | red | workshop | tighten a screw
axe | brown | forest | split logs
shovel | brown | garden | dig a trench
rake | green | garden | gather leaves
ladder | grey | garage | reach the roof
broom | brown | kitchen | sweep the floor
mop | white | hall | wipe up spills
needle | grey | bedroom | sew a button
knife | grey | kitchen | slice bread
spoon | grey | kitchen | stir porridge
fork | grey | kitchen | pick up noodles
pencil | yellow | school | draw a sketch
pen | blue | office | sign a letter
ruler | white | school | measure a line
brush | brown | workshop | paint a wall
comb | pink | bathroom | part the hair
razor | blue | bathroom | shave a beard
key | yellow | hall | open a lock
stethoscope | black | hospital | hear a heartbeat
thermometer | white | hospital | check a fever
""",
    'vehicle': """
car | red | garage | drive to work
bus | yellow | street | carry pupils
truck | green | street | haul bricks
bicycle | blue | park | pedal up a hill
train | grey | station | ride on rails
tram | red | street | cross the city
boat | white | lake | row to an island
canoe | brown | river | paddle downstream
ferry | white | river | take cars across
tractor | green | farm | plough a field
ambulance | white | hospital | rescue the injured
scooter | pink | park | roll down a path
sledge | brown | mountain | slide on snow
submarine | black | sea | dive under waves
raft | brown | river | drift with logs
""",
    'garment': """
shirt | white | bedroom | dress for a meeting
coat | black | hall | keep out the cold
hat | black | hall | shade the face
glove | grey | hall | protect the fingers
sock | blue | bedroom | cover a foot
shoe | brown | hall | walk on gravel
boot | black | farm | wade in mud
scarf | red | hall | wrap the neck
belt | brown | bedroom | hold up trousers
dress | pink | bedroom | dance at a ball
skirt | blue | school | twirl on stage
apron | white | kitchen | stop stains
helmet | yellow | garage | save the skull
cape | red | theatre | act a hero
tie | purple | office | look formal
robe | purple | bathroom | relax after a bath
""",
    'instrument': """
piano | black | hall | play a sonata
violin | brown | theatre | lead an orchestra
guitar | orange | park | strum chords
drum | red | theatre | beat a rhythm
flute | grey | school | blow a melody
trumpet | yellow | theatre | sound a fanfare
harp | yellow | hall | pluck many strings
organ | brown | church | fill a chapel with hymns
bell | grey | church | ring the hour
whistle | blue | park | call a dog
banjo | white | farm | pick a country tune
horn | green | mountain | warn the village
""",
    'furniture': """
chair | brown | school | sit at a desk
table | brown | kitchen | lay out dinner
bed | white | bedroom | sleep at night
sofa | green | hall | watch films
shelf | white | office | hold books
wardrobe | brown | bedroom | hang clothes
desk | black | office | write reports
bench | green | park | rest in the shade
stool | red | cellar | sit at a bar
cradle | pink | bedroom | rock an infant
mirror | grey | bathroom | see oneself
lamp | yellow | office | light a page
carpet | red | hall | warm bare feet
""",
    'toy': """
doll | pink | bedroom | host a tea party
kite | blue | field | fly in the wind
ball | red | park | score a goal
puzzle | green | school | join pieces
yoyo | orange | school | spin on a string
marble | blue | street | shoot at targets
balloon | red | park | decorate a birthday
puppet | purple | theatre | tell a fairy tale
swing | yellow | park | sway back and forth
slide | orange | park | whoosh to the ground
kaleidoscope | purple | attic | view patterns
dice~ | white | cellar | gamble for coins
""",
    'machine': """
oven | black | kitchen | roast a chicken
fridge | white | kitchen | chill leftovers
toaster | grey | kitchen | brown a slice
kettle | grey | kitchen | boil water
computer | grey | office | write programs
printer | white | office | copy pages
telephone | black | office | call a friend
radio | brown | attic | hear the news
camera | black | street | take photographs
clock | white | station | tell the time
fan | blue | bedroom | move the air
vacuum | red | hall | suck up dust
washer | white | bathroom | clean clothes
telescope | blue | attic | study stars
microscope | white | school | enlarge cells
crane | yellow | harbour | lift containers
""",
    'vessel': """
cup | white | kitchen | drink cocoa
bowl | blue | kitchen | mix dough
bottle | green | cellar | store wine
bucket | red | farm | carry water
basket | brown | market | collect mushrooms
barrel | brown | cellar | age whisky
vase | purple | hall | display flowers
jar | orange | cellar | keep pickles
box | brown | attic | post a parcel
bag | green | market | bring shopping home
suitcase | black | station | pack for travel
wallet | brown | street | hold money
tub | white | bathroom | take a bath
pan | black | kitchen | fry eggs
""",
    'plant': """
oak | green | forest | drop acorns
rose | red | garden | prick thumbs
tulip | yellow | field | bloom in spring
cactus | green | desert | survive drought
daisy | white | park | make a chain
ivy~ | green | church | climb walls
moss~ | green | forest | cushion stones
palm | green | desert | offer dates
lily | white | lake | float on ponds
lavender~ | purple | mountain | scent drawers
reed | brown | lake | thatch a hut
fern | green | jungle | uncurl in shade
""",
    'worker': """
baker | - | kitchen | knead dough
farmer | - | farm | harvest wheat
teacher | - | school | explain lessons
doctor | - | hospital | cure the sick
nurse | - | hospital | bandage wounds
sailor | - | harbour | hoist sails
miner | - | mountain | dig coal
judge | - | hall | decide cases
priest | - | church | bless couples
actor | - | theatre | learn roles
mechanic | - | garage | repair engines
carpenter | - | workshop | build cupboards
clerk | - | office | file papers
butcher | - | market | chop meat
florist | - | market | arrange bouquets
diver | - | sea | explore wrecks
pilot | - | station | land planes
fireman | - | street | put out fires
lawyer | - | office | defend clients
barber | - | street | trim moustaches
tailor | - | workshop | sew suits
librarian | - | school | lend novels
""",
}
