"""The functions that a recipe may name, each by its own name and the module that defines it.

Never every function of a module: beside a builder there may be one that writes Python and runs it
(`torchvision.models.feature_extraction`), or one that reads any file. What a new version adds is refused until
somebody has read it and put it here; `tests/judging.py` shows what the sources hold.
"""

from __future__ import annotations

BUILDERS: dict[str, str] = {
    "torch.nn.functional": (
        "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices "
        "adaptive_max_pool3d_with_indices affine_grid alpha_dropout batch_norm binary_cross_entropy "
        "binary_cross_entropy_with_logits celu cosine_embedding_loss cross_entropy ctc_loss dropout dropout1d "
        "dropout2d dropout3d elu embedding embedding_bag feature_alpha_dropout fold "
        "fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices gaussian_nll_loss glu grid_sample "
        "group_norm gumbel_softmax hardsigmoid hardswish hardtanh hinge_embedding_loss huber_loss instance_norm "
        "interpolate kl_div l1_loss layer_norm leaky_relu linear_cross_entropy local_response_norm log_softmax "
        "lp_pool1d lp_pool2d lp_pool3d margin_ranking_loss max_pool1d_with_indices max_pool2d_with_indices "
        "max_pool3d_with_indices max_unpool1d max_unpool2d max_unpool3d mish mse_loss multi_head_attention_forward "
        "multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss nll_loss normalize pad poisson_nll_loss "
        "relu relu6 rms_norm rrelu selu sigmoid silu smooth_l1_loss soft_margin_loss softmax softmin softsign tanh "
        "tanhshrink _threshold triplet_margin_loss triplet_margin_with_distance_loss unfold upsample "
        "upsample_bilinear upsample_nearest"
    ),
    "torch.nn.init": (
        "calculate_gain constant_ dirac_ eye_ kaiming_normal_ kaiming_uniform_ normal_ ones_ orthogonal_ sparse_ "
        "trunc_normal_ uniform_ xavier_normal_ xavier_uniform_ zeros_"
    ),
    "torchvision.models.alexnet": "alexnet",
    "torchvision.models.convnext": "convnext_tiny convnext_small convnext_base convnext_large",
    "torchvision.models.densenet": "densenet121 densenet161 densenet169 densenet201",
    "torchvision.models.detection.backbone_utils": "mobilenet_backbone resnet_fpn_backbone",
    "torchvision.models.detection.faster_rcnn": (
        "fasterrcnn_resnet50_fpn fasterrcnn_resnet50_fpn_v2 fasterrcnn_mobilenet_v3_large_320_fpn "
        "fasterrcnn_mobilenet_v3_large_fpn"
    ),
    "torchvision.models.detection.fcos": "fcos_resnet50_fpn",
    "torchvision.models.detection.keypoint_rcnn": "keypointrcnn_resnet50_fpn",
    "torchvision.models.detection.mask_rcnn": "maskrcnn_resnet50_fpn maskrcnn_resnet50_fpn_v2",
    "torchvision.models.detection.retinanet": "retinanet_resnet50_fpn retinanet_resnet50_fpn_v2",
    "torchvision.models.detection.ssd": "ssd300_vgg16",
    "torchvision.models.detection.ssdlite": "ssdlite320_mobilenet_v3_large",
    "torchvision.models.efficientnet": (
        "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 "
        "efficientnet_b6 efficientnet_b7 efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l"
    ),
    "torchvision.models.googlenet": "googlenet",
    "torchvision.models.inception": "inception_v3",
    "torchvision.models.maxvit": "maxvit_t",
    "torchvision.models.mnasnet": "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3",
    "torchvision.models.mobilenetv2": "mobilenet_v2",
    "torchvision.models.mobilenetv3": "mobilenet_v3_large mobilenet_v3_small",
    "torchvision.models.optical_flow.raft": "raft_large raft_small",
    "torchvision.models.regnet": (
        "regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf "
        "regnet_y_128gf regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf "
        "regnet_x_32gf"
    ),
    "torchvision.models.resnet": (
        "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d "
        "wide_resnet50_2 wide_resnet101_2"
    ),
    "torchvision.models.segmentation.deeplabv3": "deeplabv3_resnet50 deeplabv3_resnet101 deeplabv3_mobilenet_v3_large",
    "torchvision.models.segmentation.fcn": "fcn_resnet50 fcn_resnet101",
    "torchvision.models.segmentation.lraspp": "lraspp_mobilenet_v3_large",
    "torchvision.models.shufflenetv2": "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
    "torchvision.models.squeezenet": "squeezenet1_0 squeezenet1_1",
    "torchvision.models.swin_transformer": "swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b",
    "torchvision.models.vgg": "vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn",
    "torchvision.models.video.mvit": "mvit_v1_b mvit_v2_s",
    "torchvision.models.video.resnet": "r3d_18 mc3_18 r2plus1d_18",
    "torchvision.models.video.s3d": "s3d",
    "torchvision.models.video.swin_transformer": "swin3d_t swin3d_s swin3d_b",
    "torchvision.models.vision_transformer": "vit_b_16 vit_b_32 vit_l_16 vit_l_32 vit_h_14",
    "torchvision.ops._register_onnx_ops": "roi_pool",
    "torchvision.ops.boxes": (
        "nms batched_nms remove_small_boxes clip_boxes_to_image box_convert box_area box_iou generalized_box_iou "
        "complete_box_iou distance_box_iou masks_to_boxes"
    ),
    "torchvision.ops.ciou_loss": "complete_box_iou_loss",
    "torchvision.ops.deform_conv": "deform_conv2d",
    "torchvision.ops.diou_loss": "distance_box_iou_loss",
    "torchvision.ops.drop_block": "drop_block2d drop_block3d",
    "torchvision.ops.focal_loss": "sigmoid_focal_loss",
    "torchvision.ops.giou_loss": "generalized_box_iou_loss",
    "torchvision.ops.ps_roi_align": "ps_roi_align",
    "torchvision.ops.ps_roi_pool": "ps_roi_pool",
    "torchvision.ops.roi_align": "roi_align",
    "torchvision.ops.roi_pool": "roi_pool",
    "torchvision.ops.stochastic_depth": "stochastic_depth",
    "torchvision.transforms.v2.functional._augment": "erase erase_image erase_video jpeg jpeg_image jpeg_video",
    "torchvision.transforms.v2.functional._color": (
        "rgb_to_grayscale rgb_to_grayscale_image grayscale_to_rgb grayscale_to_rgb_image adjust_brightness "
        "adjust_brightness_image adjust_brightness_video adjust_saturation adjust_saturation_image "
        "adjust_saturation_video adjust_contrast adjust_contrast_image adjust_contrast_video adjust_sharpness "
        "adjust_sharpness_image adjust_sharpness_video adjust_hue adjust_hue_image adjust_hue_video adjust_gamma "
        "adjust_gamma_image adjust_gamma_video posterize posterize_image posterize_video solarize solarize_image "
        "solarize_video autocontrast autocontrast_image autocontrast_video equalize equalize_image equalize_video "
        "invert invert_image invert_video permute_channels permute_channels_image permute_channels_video"
    ),
    "torchvision.transforms.v2.functional._deprecated": "to_tensor get_image_size",
    "torchvision.transforms.v2.functional._geometry": (
        "horizontal_flip horizontal_flip_image horizontal_flip_mask horizontal_flip_keypoints "
        "horizontal_flip_bounding_boxes horizontal_flip_video vertical_flip vertical_flip_image vertical_flip_mask "
        "vertical_flip_keypoints vertical_flip_bounding_boxes vertical_flip_video resize resize_image resize_mask "
        "resize_keypoints resize_bounding_boxes resize_video affine affine_image affine_keypoints "
        "affine_bounding_boxes affine_mask affine_video rotate rotate_image rotate_keypoints rotate_bounding_boxes "
        "rotate_mask rotate_video pad pad_image pad_mask pad_keypoints pad_bounding_boxes pad_video crop crop_image "
        "crop_keypoints crop_bounding_boxes crop_mask crop_video perspective perspective_image perspective_keypoints "
        "perspective_bounding_boxes perspective_mask perspective_video elastic elastic_image elastic_keypoints "
        "elastic_bounding_boxes elastic_mask elastic_video center_crop center_crop_image center_crop_keypoints "
        "center_crop_bounding_boxes center_crop_mask center_crop_video resized_crop resized_crop_image "
        "resized_crop_keypoints resized_crop_bounding_boxes resized_crop_mask resized_crop_video five_crop "
        "five_crop_image five_crop_video ten_crop ten_crop_image ten_crop_video"
    ),
    "torchvision.transforms.v2.functional._meta": (
        "get_dimensions get_dimensions_image get_dimensions_video get_num_channels get_num_channels_image "
        "get_num_channels_video get_size get_size_image get_size_video get_size_mask get_size_bounding_boxes "
        "get_size_keypoints get_num_frames get_num_frames_video convert_bounding_box_format clamp_bounding_boxes "
        "clamp_keypoints"
    ),
    "torchvision.transforms.v2.functional._misc": (
        "normalize normalize_image normalize_video gaussian_blur gaussian_blur_image gaussian_blur_video "
        "gaussian_noise gaussian_noise_image gaussian_noise_video to_dtype to_dtype_image convert_image_dtype "
        "to_dtype_video sanitize_bounding_boxes sanitize_keypoints"
    ),
    "torchvision.transforms.v2.functional._temporal": "uniform_temporal_subsample uniform_temporal_subsample_video",
    "torchvision.transforms.v2.functional._type_conversion": "to_image",
    "torchvision.transforms.functional": (
        "get_dimensions get_image_size get_image_num_channels to_tensor pil_to_tensor convert_image_dtype "
        "to_pil_image normalize resize pad crop center_crop resized_crop hflip perspective vflip five_crop ten_crop "
        "adjust_brightness adjust_contrast adjust_saturation adjust_hue adjust_gamma rotate affine to_grayscale "
        "rgb_to_grayscale erase gaussian_blur invert posterize solarize adjust_sharpness autocontrast equalize "
        "elastic_transform"
    ),
}
