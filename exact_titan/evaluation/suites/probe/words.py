"""The words of the probe's questions. The words of a list are of one type, so one word can replace another."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    """
    Alan Alex Amanda Angela Anita Ashley Brandon Brian Bruce Carol Chris Craig Cynthia Dennis Derek Diego Donna Elena
    Eric Erica Fiona Gary Gina Glenn Greg Heather Heidi Ingrid Jamie Janet Jason Jeff Jenna Jennifer Jesse Jessica
    Karen Keith Kelly Kevin Kim Kyle Larry Lars Leah Linda Lisa Luca Luis Marco Megan Melissa Mia Mike Monica Nicole
    Nora Oscar Pablo Patricia Priya Raj Ricardo Ryan Samantha Sandra Sara Scott Sean Sharon Sofia Steve Tara Tim Todd
    Tyler Vera Wendy Yuki
    """
)
"""First names that are rare in old books."""

CITIES = _words(
    """
    Amsterdam Ankara Atlanta Austin Bangkok Barcelona Beijing Belfast Berlin Bogota Boston Brisbane Brussels Budapest
    Buffalo Cairo Calgary Cardiff Chicago Cleveland Copenhagen Dallas Denver Detroit Dubai Dublin Durham Edinburgh
    Frankfurt Glasgow Hamburg Hanoi Havana Helsinki Houston Istanbul Jakarta Karachi Leeds Lima Manila Melbourne Memphis
    Miami Montreal Mumbai Munich Nairobi Oslo Ottawa Phoenix Prague Santiago Seattle Seoul Shanghai Singapore Stockholm
    Sydney Taipei Tampa Tehran Tokyo Toronto Tucson Vancouver Zurich
    """
)
"""Cities that are rare in old books."""

OBJECTS = _words(
    """
    lantern compass violin ladder hammer guitar camera basket blanket bottle bucket candle carpet clock crown cup
    curtain desk drum flag flute globe helmet jar kettle key kite knife lamp map mirror necklace needle painting piano
    pillow pipe rope saddle shield shovel spoon statue sword telescope tent trumpet umbrella vase whistle
    """
)
"""Things that a person can keep."""

FIELDS = _words(
    """
    origin destination warehouse office factory harbor airport market laboratory museum library hospital studio school
    bank hotel station depot supplier buyer
    """
)
"""Fields of a record of a shipment. The value of every field is a city."""
