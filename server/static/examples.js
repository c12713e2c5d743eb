// Texts to try, each cut where a person might stop typing. A test asks the default model for their drafts.

export const EXAMPLES = [
  ["A reply", "Dear Ann,\n\nThank you for your email. Please let me kn"],
  ["An offer", "Please do not hesitate to contact me if you have any qu"],
  ["An apology", "We are sorry for the inconv"],
  ["A story", "Once upon a time, there was a little"],
  ["A fact", "The capital of France is"],
  ["Code", "def add(a, b):\n    ret"],
];
