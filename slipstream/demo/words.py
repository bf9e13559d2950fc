# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The word lists from which stories and tasks are made."""

import random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GIRLS = _words(
    "Ada Alice Amy Anna Bella Clara Daisy Ella Emma Eva Fiona Grace Hana Ida Iris Ivy Jane "
    "Julia Kate Lara Leah Lily Lina Lucy Maya Mia Mina Molly Nina Nora Olivia Paula Rosa Ruby "
    "Sara Sofia Tess Uma Vera Wendy Zoe"
)
BOYS = _words(
    "Adam Alex Ben Carl Dan David Eli Emil Felix Finn George Hugo Ian Jack Jan Joe Jonas Karl "
    "Leo Liam Luca Luke Mark Max Milo Nico Noah Oscar Otto Paul Peter Ravi Sam Simon Theo Tim "
    "Toby Tom Victor Will Yusuf"
)
NAMES = GIRLS + BOYS

ANIMALS = _words(
    "bear bird cat cow deer dog duck fox frog goat hen horse lamb mole mouse panda pig pony "
    "puppy rabbit sheep squirrel swan tiger turtle wolf"
)
COLORS = _words("black blue brown golden green grey pink purple red silver white yellow")
SIZES = _words("big little long new pretty round shiny small soft wooden")
TOYS = _words(
    "ball basket bell boat book bottle box brush coat cup doll drum flag flute hat key kite "
    "lamp map mirror necklace pencil puzzle ring robot rope scarf shell spoon stone sword train "
    "truck watch whistle"
)
PLACES = _words(
    "barn beach bridge castle cave farm field forest garden harbor hill lake library market "
    "meadow mill museum park playground pond river school shop station tower valley village "
    "well"
)
SPOTS = _words(
    "attic bag barn basement bathroom bedroom box cabinet car cellar closet cupboard desk "
    "drawer garage garden hall kitchen office pantry shed sink tent trunk wagon"
)
FOODS = _words(
    "apples berries bread cake carrots cheese cherries cookies corn grapes honey milk nuts "
    "pears pie plums rice salad soup tea toast"
)
FEELINGS = _words("brave clever curious friendly gentle happy helpful honest kind quiet")
CITIES = _words(
    "Athens Berlin Boston Cairo Chicago Delhi Denver Dublin Geneva Hanoi Houston Istanbul Lagos "
    "Lima Lisbon London Madrid Miami Milan Moscow Munich Naples Osaka Oslo Paris Prague Quito "
    "Riga Rome Seattle Seoul Sydney Tokyo Toronto Venice Vienna Warsaw Zurich"
)
JOBS = _words(
    "baker builder carpenter chef dentist doctor driver farmer gardener judge lawyer nurse "
    "painter pilot plumber sailor singer tailor teacher waiter writer"
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
GOODS = _words(
    "apples bags balls belts books boots boxes candles cards chairs clocks cups flowers gloves "
    "hats jars keys lamps maps mugs pencils pens pillows plates rings shirts shoes socks spoons "
    "stamps tables towels toys"
)
NOUNS = _words(
    "acorn actor angle animal ant apple arm arrow autumn axe baby badge bag ball banana band "
    "bank barn basket bat bath beach bean bear bed bee bell belt bench berry bike bird blanket "
    "boat body bone book boot bottle bowl box boy branch bread brick bridge broom brother brush "
    "bucket bus bush butter button cabin cake camel camera camp candle candy car card carrot "
    "cart castle cat cave chain chair cheese cherry chicken child church circle city clock "
    "cloud coat coffee coin comb cookie corn cow crab cream crow crown cup curtain daisy dance "
    "desk diamond dinner dish doctor dog doll donkey door dragon dream dress drum duck eagle "
    "ear earth egg elbow engine eye face family farm feather fence field finger fire fish flag "
    "flame floor flower fly forest fork fox friend frog fruit game garden gate ghost giant gift "
    "girl glass glove goat gold goose grape grass guitar hair hammer hand harbor hat hawk heart "
    "hen hill honey hook horse hotel house ice ink insect iron island jacket jam jar jelly "
    "jewel juice jungle key king kitchen kite kitten knee knife ladder lake lamb lamp leaf leg "
    "lemon letter lion lock log machine magnet map market mask match meadow meal melon metal "
    "milk mirror monkey moon morning mother mountain mouse mouth mud museum music nail neck "
    "needle nest net night nose note nurse nut oak ocean office oil onion orange oven owl page "
    "paint palace panda paper parrot pasta path peach pear pearl pen pencil pepper piano "
    "picture pig pillow pin pirate plane planet plant plate plum pocket poem pond pony pool "
    "potato prince pumpkin puppet queen quilt rabbit radio rain rat ribbon rice ring river road "
    "robot rock roof room root rope rose ruler sail salt sand scarf school sea seed shadow "
    "sheep shell ship shirt shoe shop shore sister skirt sky snail snake snow soap sock soil "
    "song soup spider spoon spring square stair star station steam stick stone storm street "
    "sugar summer sun swan sword table tail tea teacher tent thread ticket tiger toast tooth "
    "tower town toy train tree truck tulip turtle uncle valley vase village violin voice wagon "
    "wall water wave wheel whistle window wing winter wolf wood wool worm yard year zebra"
)

_SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")


def make_up(rng: random.Random) -> str:
    """A word that means nothing: two or three syllables."""
    return "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 3)))
