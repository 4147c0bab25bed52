// Files of any kind, pasted or dropped anywhere on the page, go to the question box, which itself
// takes pasted pictures, and what is dropped right on it.
() => {
  const take = (event, list) => {
    const files = [...(list ?? [])];
    const box = document.querySelector("#question textarea");
    if (files.length === 0 || box === null) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const dataTransfer = new DataTransfer();
    files.forEach((file) => dataTransfer.items.add(file));
    const drop = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
    drop.handedOver = true;
    box.dispatchEvent(drop);
    box.focus();
  };
  document.addEventListener("paste", (event) => take(event, event.clipboardData?.files), true);
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!event.handedOver) take(event, event.dataTransfer?.files);
  }, true);
  // Gradio calls the examples a list, and their buttons not its entries: readers skip such a list.
  new MutationObserver(() => {
    document.querySelector("#chat .examples[role=list]")?.setAttribute("role", "group");
  }).observe(document.body, { childList: true, subtree: true });
}
