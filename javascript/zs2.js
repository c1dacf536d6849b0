// A clip that is dropped on PNG Info or on a prompt: the host reads pictures alone, so it is given the clip's first frame
// as a PNG that carries the clip's text.

const zs2Clips = /\.(mp4|m4v|mov|mkv|webm|avi|webp|apng)$/i;

function zs2IsClip(file) {
    return file.type.startsWith('video/') || ['image/webp', 'image/apng'].includes(file.type) || zs2Clips.test(file.name);
}

// Where a file that is dropped at `element` goes: an element of the host with a file input, or nothing of ours.
function zs2Target(element) {
    const image = element?.closest?.('#pnginfo_image');
    if (image) return image;
    if (typeof dragDropTargetIsPrompt !== 'function' || !dragDropTargetIsPrompt(element)) return null;
    const tab = element.closest('#tab_img2img') ? 'img2img' : 'txt2img';
    return gradioApp().getElementById(`${tab}_prompt_image`);
}

function zs2Notice(text) {
    document.getElementById('zs2_notice')?.remove();
    const notice = document.createElement('div');
    notice.id = 'zs2_notice';
    notice.setAttribute('role', 'alert');
    notice.textContent = text;
    notice.style.cssText = 'position: fixed; z-index: 10000; left: 50%; bottom: 2em; transform: translateX(-50%);' +
        'max-width: 80%; padding: 0.8em 1.2em; border-radius: 0.5em; background: #7f1d1d; color: white; cursor: pointer';
    notice.addEventListener('click', () => notice.remove());
    document.body.append(notice);
    setTimeout(() => notice.remove(), 12000);
}

async function zs2Still(clip) {
    const answer = await fetch('zs2/v1/still', {
        method: 'POST',
        body: clip,
        headers: {'Content-Type': 'application/octet-stream'},
    });
    if (!answer.ok) {
        const words = await answer.json().catch(() => ({}));
        throw new Error(words.detail || answer.statusText || `status ${answer.status}`);
    }
    return new File([await answer.blob()], clip.name.replace(/\.[^.]*$/, '') + '.png', {type: 'image/png'});
}

function zs2Give(target, still) {
    const files = new DataTransfer();
    files.items.add(still);
    const input = target.querySelector('input[type="file"]');
    if (input) {
        input.files = files.files;
        input.dispatchEvent(new Event('change', {bubbles: true}));
    } else { // it shows a picture: the host takes that away first
        dropReplaceImage(target.querySelector('[data-testid="image"]') || target, files.files);
    }
}

document.addEventListener('drop', async event => {
    const clip = event.dataTransfer?.files?.[0];
    const target = clip && zs2IsClip(clip) && zs2Target(event.composedPath()[0]);
    if (!target) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    try {
        zs2Give(target, await zs2Still(clip));
    } catch (error) {
        zs2Notice(`ZS²: ${clip.name}: ${error.message}`);
    }
}, true);

document.addEventListener('dragover', event => {
    if (event.dataTransfer?.types?.includes('Files') && zs2Target(event.composedPath()[0])) event.preventDefault();
}, true);
