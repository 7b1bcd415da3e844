// Keys of the vote: left and right choose, down is "too close", up is "both bad", u takes back, r shows references.
// Everything works without this script, too.
const CHOICES = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "too_close", ArrowUp: "both_bad" };
const ballot = document.querySelector("form.ballot");
let sent = false;

for (const form of document.querySelectorAll("form[method=post]")) {
  form.addEventListener("submit", (event) => {
    if (sent) event.preventDefault(); // a double click is one vote
    sent = true;
  });
}

document.addEventListener("keydown", (event) => {
  // a key that is held down must not vote on the next pair
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=text]")) return;
  const button = ballot?.querySelector(`button[value=${CHOICES[event.key] ?? "none"}]`);
  const references = document.querySelector("details.references");
  const undo = document.querySelector("#undo");
  if (button) ballot.requestSubmit(button);
  else if (event.key === "u" && undo && !undo.disabled) undo.form.requestSubmit(undo);
  else if (event.key === "r" && references) references.open = !references.open;
  else if (event.key === "Escape") for (const box of document.querySelectorAll(".zoom input:checked")) box.checked = false;
  else return;
  event.preventDefault();
});

// The browser's "back" shows a page from memory, with a pair that has been voted on.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

for (const image of document.querySelectorAll("[data-preload]")) new Image().src = image.dataset.preload;
