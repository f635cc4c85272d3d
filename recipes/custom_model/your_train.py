"""The training of recipe.yaml as one writes it by hand: one device, no resume, no logs, no DDP.

python recipes/custom_model/your_train.py
"""

import torch
from data import Spirals
from model import Net
from torch import nn
from torch.utils.data import DataLoader

EPOCHS = 20
BATCH_SIZE = 64


def train_one_epoch(model, loader, loss_fn, optimizer, scheduler, device):
    model.train()
    losses = []
    for points, targets in loader:
        points, targets = points.to(device), targets.to(device)
        optimizer.zero_grad()
        loss = loss_fn(model(points), targets)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def evaluate(model, loader, loss_fn, device):
    model.eval()
    total_loss = correct = 0
    for points, targets in loader:
        points, targets = points.to(device), targets.to(device)
        outputs = model(points)
        total_loss += loss_fn(outputs, targets).item() * len(targets)
        correct += (outputs.argmax(1) == targets).sum().item()
    return total_loss / len(loader.dataset), correct / len(loader.dataset)


def main(weights="model_weights.pth") -> list[float]:
    """Train, evaluate and save; return every step's loss."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train_loader = DataLoader(Spirals(samples=2000), batch_size=BATCH_SIZE)
    validation_loader = DataLoader(Spirals(samples=500, seed=1), batch_size=BATCH_SIZE)

    torch.manual_seed(0)
    model = Net(classes=3).to(device)
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS * len(train_loader))

    losses = []
    for epoch in range(1, EPOCHS + 1):
        losses += train_one_epoch(model, train_loader, loss_fn, optimizer, scheduler, device)
        loss, accuracy = evaluate(model, validation_loader, loss_fn, device)
        print(f"epoch {epoch}: train loss {losses[-1]:.4f}, validation loss {loss:.4f}, accuracy {accuracy:.3f}")

    torch.save(model.state_dict(), weights)
    return losses


if __name__ == "__main__":
    main()
