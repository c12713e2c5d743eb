"""Texts that simulated users type, written for the benchmarks."""

TEXTS = (
    "Hi Marta, thank you for sending the draft of the spring programme. I read it on the train this morning and I "
    "think it is almost ready to go to the printer. Two things still worry me. The opening concert is on the same "
    "evening as the football final, so we may want to start an hour earlier, and the names of the two soloists "
    "are missing on the third page. Could you ask Jonas for their photographs? I will be in the office on "
    "Thursday afternoon and we can go through the last details together then. Best wishes, Helen",
    "The garden behind the house had been left alone for years. Brambles covered the path to the well, and the "
    "apple trees, which nobody had cut back, leaned on each other like old friends after a long walk. Every "
    "morning a grey cat came over the wall, sat down on the warm stones and watched the street. When the new "
    "owners arrived in April they found a rusty key under a flower pot, but no door in the whole house that it "
    "would open.",
    "Release notes for the second beta. The import dialog now remembers the last folder, and large files are read "
    "in the background so that the window stays responsive. We fixed a bug that lost the selection after an undo, "
    "and another that showed the wrong date for appointments on the day when the clocks change. Known problems: "
    "printing is slow on some network printers, and the search does not find words with a hyphen. Please report "
    "what you find before Friday.",
    "To make a good soup you need very little. Cut two onions, a leek and three carrots into small pieces and let "
    "them soften slowly in butter. Add a spoonful of flour, stir for a minute, then pour in a litre of hot water "
    "with a bay leaf. After half an hour the vegetables are tender. Take out the leaf, season with salt and "
    "pepper, and serve the soup with bread from yesterday that you have toasted in the oven with a little oil and "
    "garlic.",
    "Dear colleagues, the heating in the east wing will be switched off from Monday to Wednesday while the pipes "
    "are replaced. The meeting rooms on the first floor stay open, and we have put additional desks there for "
    "everyone who prefers to work in a warm place. If you have equipment that must not get cold, please tell the "
    "caretaker until Friday noon. The parking spaces next to the entrance are reserved for the workers during "
    "these three days.",
)
