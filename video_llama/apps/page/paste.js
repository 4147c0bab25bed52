// Files of any kind, pasted anywhere on the page, go to the question box, which itself takes
// pasted pictures only. It does take what is dropped on it.
() => {
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    const box = document.querySelector("#question textarea");
    if (files.length === 0 || box === null) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const dataTransfer = new DataTransfer();
    files.forEach((file) => dataTransfer.items.add(file));
    box.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
    box.focus();
  }, true);
}
